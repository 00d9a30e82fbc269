"""Configurations: the options of each command, declared once, with protocols and YAML files.

>>> from darts_bio.config import SearchConfig
>>> SearchConfig(rules="fa,usf", epochs="3").rules
('fa', 'usf')
"""

from darts_bio.config.common import (
    CONFIG_FILE,
    CommandConfig,
    FitConfig,
    Gradients,
    RunConfig,
    SmallImagesConfig,
)
from darts_bio.config.evaluation import AlignmentConfig, RobustnessConfig
from darts_bio.config.files import RUNS
from darts_bio.config.options import configuration, flag, option
from darts_bio.config.protocols import PROTOCOLS, Protocol
from darts_bio.config.search import SearchConfig
from darts_bio.config.tools import (
    AuditConfig,
    ExportConfig,
    GenotypeConfig,
    ListConfig,
    ReportConfig,
    RulesConfig,
    RunsConfig,
    TimmConfig,
)
from darts_bio.config.training import ImageNetConfig, RetrainConfig, TrainingConfig

__all__ = [
    "CONFIG_FILE",
    "PROTOCOLS",
    "RUNS",
    "AlignmentConfig",
    "AuditConfig",
    "CommandConfig",
    "ExportConfig",
    "FitConfig",
    "GenotypeConfig",
    "Gradients",
    "ImageNetConfig",
    "ListConfig",
    "Protocol",
    "ReportConfig",
    "RetrainConfig",
    "RobustnessConfig",
    "RulesConfig",
    "RunConfig",
    "RunsConfig",
    "SearchConfig",
    "SmallImagesConfig",
    "TimmConfig",
    "TrainingConfig",
    "configuration",
    "flag",
    "option",
]
