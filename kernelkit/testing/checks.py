"""The checks by name.

Each yields what it finds wrong, one sentence at a time; a :class:`kernelkit.testing.subject.LeftOut` for what it could
not judge; and raises :class:`kernelkit.testing.subject.NotMadeError` where it is not for this kernel or this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernelkit.testing import machinery, purity, values
from kernelkit.testing.subject import Subject

Check = Callable[[Subject], Iterator[str]]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        values.accuracy,
        values.magnitudes,
        values.large_values,
        values.layout,
        values.long_rows,
        values.ignored_labels,
        values.ties,
        purity.purity,
        purity.second_backward,
        purity.determinism,
        purity.checkpointing,
        machinery.operators,
        machinery.tracing,
        machinery.autocast,
        machinery.streams,
        machinery.other_device,
    )
}
"""In the order in which they are made."""
