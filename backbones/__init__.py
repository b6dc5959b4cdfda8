"""The backbones of the paper's Table 2, and DREEAM; importing one registers it for --backbone."""

from backbones import docunet, dreeam, kd_docre  # noqa: F401
from model import DocREModel

BACKBONES = DocREModel.backbones
