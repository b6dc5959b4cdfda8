"""DREEAM (Ma et al., EACL 2023): ATLOP whose pairs are taught to attend to their evidence."""

from model import ATLOP


class DREEAM(ATLOP, backbone="dreeam"):
    """ATLOP over the mean of the encoder's last three layers, of their attention too. It has no
    parameter of its own; with --evidence_weight its attention learns from evidence sentences, as
    that of ATLOP itself can."""

    num_layers = 3
    eps = 1e-30
