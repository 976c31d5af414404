"""What a metric is: name, type, labels, meaning and where it comes from; the catalogue is made of these. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

PREFIX: Final = "appliance_"


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    source: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # of a histogram


SLOT: Final = ("gpu",)
GPU: Final = ("gpu", "uuid")


def gauge(name: str, meaning: str, source: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.GAUGE, meaning, source, labels)


def counter(name: str, meaning: str, source: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.COUNTER, meaning, source, labels)


def histogram(name: str, meaning: str, source: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.HISTOGRAM, meaning, source, labels, buckets)
