"""The operators: one module each, with what the stable ABI cannot register from C++."""

from pairloss._ops.pair_kl_hinge import pair_kl_hinge, pair_kl_hinge_of_labels
from pairloss._ops.pair_list_kl_hinge import pair_list_kl_hinge

__all__ = ["pair_kl_hinge", "pair_kl_hinge_of_labels", "pair_list_kl_hinge"]
