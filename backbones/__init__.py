"""What Table 2 of the paper compares, by the names of --backbone."""

from backbones.docunet import DocuNet
from backbones.kd_docre import KDDocRE
from model import ATLOP

BACKBONES = {"atlop": ATLOP, "docunet": DocuNet, "kd_docre": KDDocRE}
