"""Configurations: the options of each command, declared once, with protocols and YAML files.

>>> from darts_bio.config import SearchConfig
>>> SearchConfig(rules="fa,usf", epochs="3").rules
('fa', 'usf')
"""

from darts_bio.config.options import configuration, flag, option
from darts_bio.config.protocols import PROTOCOLS, Protocol
from darts_bio.config.schema import (
    CONFIG_FILE,
    RUNS,
    AlignmentConfig,
    AuditConfig,
    CommandConfig,
    ExportConfig,
    FitConfig,
    GenotypeConfig,
    ImageNetConfig,
    ListConfig,
    ReportConfig,
    RetrainConfig,
    RobustnessConfig,
    RulesConfig,
    RunConfig,
    RunsConfig,
    SearchConfig,
    SmallImagesConfig,
    TimmConfig,
    TrainingConfig,
)

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
