"""Intensities of a store, domain by domain: what the network sees, sampled."""

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from sdm_cli.data.cases import counted
from sdm_cli.data.store import SliceStore
from sdm_cli.runs.charts import histogram_chart

_MOST_CASES = 24
"""Of a group: they are spread over it."""
_SLICES = 8
_BINS = 64
_WHITE = 65535


def draw_intensities(store: SliceStore, group_of: Mapping[str, str]) -> Element:
    """Histograms of groups of cases over each other; each case has the same weight.

    Args:
        store: whose slices are sampled.
        group_of: domain or role of each case.

    Raises:
        StoreError: a case is damaged.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    shares: dict[str, NDArray[np.float64]] = {}
    for group in sorted(set(group_of.values())):
        case_ids = [case_id for case_id in group_of if group_of[case_id] == group]
        sampled = [case_ids[i] for i in _spread(len(case_ids), _MOST_CASES)]
        name = f"{group} ({counted(len(sampled), 'scan')})"
        shares[name] = 100 * np.mean([_histogram(store, case_id, edges) for case_id in sampled], axis=0)
    note = "Normalised as for the network, 0 to 1; the axis of the shares is that of their roots."
    return histogram_chart("Intensities of the stored slices", edges, shares, note)


def _histogram(store: SliceStore, case_id: str, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the bins in some slices of a case."""
    slices = [store.read_image(case_id, z) for z in _spread(store.cases[case_id].n_slices, _SLICES)]
    counts, _ = np.histogram(np.stack(slices), edges * _WHITE)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def _spread(n: int, most: int) -> Sequence[int]:
    """At most so many of n places, from the first to the last."""
    return sorted({round(place) for place in np.linspace(0, n - 1, min(n, most)).tolist()})
