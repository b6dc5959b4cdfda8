"""What Table 2 of the paper compares. Each backbone enters itself under the name of --backbone."""

from backbones import docunet, dreeam, kd_docre  # noqa: F401
from model import DocREModel

BACKBONES = DocREModel.backbones
