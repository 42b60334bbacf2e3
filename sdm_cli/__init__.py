"""sdm: semi-supervised segmentation of medical scans with few labels (S&D Messenger)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdm_cli.runs.model import Model, Prediction, load_model

__version__ = "0.1.0"
__all__ = ["Model", "Prediction", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """The Python face, imported when it is asked for: `sdm --help` does without numpy."""
    if name in __all__:
        from sdm_cli.runs import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
