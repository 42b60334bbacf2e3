"""When pseudo-labels collapse: a class that the labeled slices have vanishes from them, or all do but the background.

The rule, over the last RECORDS records of a run that have pseudo-labels: a class has vanished when its mean share of
their pixels is below VANISHED of its mean share of the labeled pixels, until it is above RECOVERED of it again.
It is derived from the recorded lines alone, so a resumed run alarms where one that never stopped does.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

RECORDS = 5
VANISHED = 1 / 20
RECOVERED = 1 / 10


class CollapseWatch:
    """Takes the step lines of a run in their order.

    Attributes:
        vanished: classes that the pseudo-labels lack now.
        alarm: that of the line taken last, if it raised one.
    """

    def __init__(self) -> None:
        self.vanished: tuple[str, ...] = ()
        self.alarm: dict[str, Any] | None = None
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECORDS)

    def take(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take the next line of the record (see `record`); other lines than those of steps are passed over.

        Returns:
            The line of an alarm, when classes have vanished that had not before; else None.
        """
        self.alarm = self._judge(entry)
        return self.alarm

    def _judge(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        if not (entry.get("pseudo_share") and entry.get("labeled_share")):
            return None
        self._recent.append(entry)
        if len(self._recent) < RECORDS:
            return None
        pseudo, labeled = mean_shares(self._recent, "pseudo_share"), mean_shares(self._recent, "labeled_share")
        before = self.vanished
        self.vanished = tuple(
            name
            for name in labeled
            if name in pseudo and pseudo[name] < (RECOVERED if name in before else VANISHED) * labeled[name]
        )
        shares = {
            name: {"pseudo_share": pseudo[name], "labeled_share": labeled[name]}
            for name in self.vanished
            if name not in before
        }
        if not shares:
            return None
        # A class of which no labeled pixel was seen cannot vanish.
        foreground = {name for name in list(labeled)[1:] if labeled[name] > 0}
        return {
            "step": entry["step"],
            "collapse": shares,
            "since": self._recent[0]["step"],
            "only_background": foreground <= set(self.vanished),
        }


def mean_shares(entries: Sequence[Mapping[str, Any]] | deque[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Mean share over step lines that have `key`, of the classes that all of them name: a disk may damage a name."""
    names = [name for name in entries[0][key] if all(name in entry[key] for entry in entries)]
    return {name: fmean(entry[key][name] for entry in entries) for name in names}


def describe_collapse(alarm: Mapping[str, Any]) -> str:
    """The alarm of `CollapseWatch.take` as one sentence."""
    shares = ", ".join(
        f"{name} {100 * share['pseudo_share']:.3g} % of their pixels against {100 * share['labeled_share']:.3g} % of "
        "the labeled ones"
        for name, share in alarm["collapse"].items()
    )
    what = "hold only background" if alarm["only_background"] else f"have lost {', '.join(alarm['collapse'])}"
    return (
        f"step {alarm['step']}: the pseudo-labels {what} (steps {alarm['since']} to {alarm['step']}: {shares}); if it "
        "stays so, train again with a higher method.labeled_only_fraction or a lower method.unlabeled_weight."
    )
