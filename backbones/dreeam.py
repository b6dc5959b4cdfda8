"""DREEAM (Ma et al., EACL 2023): ATLOP whose attention is trained on evidence sentences."""

from model import ATLOP


class DREEAM(ATLOP, backbone="dreeam"):
    """ATLOP with the mean of the encoder's last three layers, of output and attention. It adds no
    parameters. Any backbone can be trained with the evidence loss (--evidence_weight)."""

    num_layers = 3
    eps = 1e-30
