"""Images a second, and the share of time that goes into waiting for data, over the last seconds."""

from typing import final

_LIMIT = 0.05
"""Share of the time above which waiting for data is worth a word."""

ADVICE = (
    "of the time goes into waiting for data. Read with more worker processes (num_workers), or hold small images in memory "
    "(bitalloc.data.ImageBatches, parquet_images)."
)


@final
class Throughput:
    """What a training sees and waits for.

    Figures are those of the last one to two intervals, so that they follow changes and do not flicker.

    Args:
        now: the time in seconds.
        interval: seconds.
    """

    def __init__(self, now: float, interval: float) -> None:
        self._interval = interval
        self._total = (now, 0, 0.0)  # time, images, seconds waited
        self._before = self._middle = self._total

    @property
    def known(self) -> bool:
        """Whether any image was seen."""
        return self._total[1] > 0

    @property
    def images_per_second(self) -> float:
        """Over the last one to two intervals."""
        return (self._total[1] - self._before[1]) / max(self._total[0] - self._before[0], 1e-9)

    @property
    def waiting(self) -> float:
        """The share of time spent waiting for data, 0 to 1, over the same time."""
        return min(1.0, (self._total[2] - self._before[2]) / max(self._total[0] - self._before[0], 1e-9))

    @property
    def starved(self) -> bool:
        """Whether more than 5 % of a whole interval went into waiting."""
        return self._total[0] - self._before[0] >= self._interval and self.waiting > _LIMIT

    def see(self, images: int, waited: float, now: float) -> None:
        """``images`` more were seen at the time ``now``; they were waited for ``waited`` seconds."""
        self._total = (now, self._total[1] + images, self._total[2] + waited)
        if now - self._middle[0] >= self._interval:
            self._before, self._middle = self._middle, self._total

    def __str__(self) -> str:
        return f"{per_second(self.images_per_second, 'images')}, data {100 * self.waiting:.0f} %"


def per_second(rate: float, unit: str = "") -> str:
    """``1 580 images/s``, ``12.3 images/s``, ``0.5/s``."""
    number = f"{rate:,.0f}".replace(",", " ") if rate >= 1000 else f"{rate:.3g}"
    return f"{number} {unit}/s" if unit else f"{number}/s"
