"""Attribution: where in an image a network looks, how two networks' maps are compared, and a loss that keeps them in the same order."""

from bitalloc.attribution.base import Attributed, Attribution
from bitalloc.attribution.distance import kendall, spearman, spearman_distance, top_overlap
from bitalloc.attribution.feature_map import find_feature_map
from bitalloc.attribution.freeze import frozen
from bitalloc.attribution.gradcam import GradCAM
from bitalloc.attribution.input_gradient import GradientTimesInput, InputGradient
from bitalloc.attribution.loss import AttributionLoss
from bitalloc.attribution.point import Point
from bitalloc.attribution.power import CapacityAwarePower, FixedPower, Power
from bitalloc.attribution.rank_distance import RankAgreement, RankDistanceReport, attribution_rank_distance
from bitalloc.attribution.ranking import PowerRanking, Ranking, SoftSpearman
from bitalloc.attribution.soft_rank import soft_rank

__all__ = [
    "Attribution", "Attributed", "GradCAM", "InputGradient", "GradientTimesInput", "Point", "find_feature_map", "frozen",
    "Ranking", "PowerRanking", "SoftSpearman", "soft_rank", "Power", "FixedPower", "CapacityAwarePower", "AttributionLoss",
    "spearman", "kendall", "top_overlap", "spearman_distance", "RankAgreement", "RankDistanceReport", "attribution_rank_distance",
]  # fmt: skip
