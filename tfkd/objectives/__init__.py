"""What a student learns from a teacher. One file, one class, one objective; this table is the whole list."""

from tfkd.objectives.attention_probability_kl import AttentionProbabilityKL
from tfkd.objectives.attention_score_mse import AttentionScoreMSE
from tfkd.objectives.binary_kl import BinaryKL
from tfkd.objectives.contrastive import Contrastive
from tfkd.objectives.decoupled_kd import DecoupledKD
from tfkd.objectives.embedding_mse import EmbeddingMSE
from tfkd.objectives.hidden_state_cosine import HiddenStateCosine
from tfkd.objectives.hidden_state_mse import HiddenStateMSE
from tfkd.objectives.jensen_shannon import JensenShannon
from tfkd.objectives.kl_divergence import KLDivergence
from tfkd.objectives.layer_map import layer_pairs
from tfkd.objectives.layer_norm_mse import LayerNormMSE
from tfkd.objectives.logits_mse import LogitsMSE
from tfkd.objectives.minilm_v1 import MiniLMv1
from tfkd.objectives.minilm_v2 import MiniLMv2
from tfkd.objectives.objective import FROM_BATCH, Objective
from tfkd.objectives.pairwise_objective import PairwiseObjective
from tfkd.objectives.pkd import PKD
from tfkd.objectives.response_objective import ResponseObjective
from tfkd.objectives.reverse_kl import ReverseKL
from tfkd.objectives.rkd_angle import RKDAngle
from tfkd.objectives.rkd_distance import RKDDistance
from tfkd.objectives.similarity_preserving import SimilarityPreserving

RESPONSE = (KLDivergence, ReverseKL, JensenShannon, LogitsMSE, BinaryKL, DecoupledKD)
FEATURES = (EmbeddingMSE, HiddenStateMSE, HiddenStateCosine, PKD, LayerNormMSE)
ATTENTION = (AttentionScoreMSE, AttentionProbabilityKL, MiniLMv1, MiniLMv2)
PAIRWISE = (RKDDistance, RKDAngle, SimilarityPreserving, Contrastive)

OBJECTIVES = {objective.default_name: objective for objective in (*RESPONSE, *FEATURES, *ATTENTION, *PAIRWISE)}

__all__ = [
    "FROM_BATCH",
    "OBJECTIVES",
    "Objective",
    "PairwiseObjective",
    "ResponseObjective",
    "layer_pairs",
    *sorted(objective.__name__ for objective in OBJECTIVES.values()),
]
