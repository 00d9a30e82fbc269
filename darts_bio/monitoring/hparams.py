"""What TensorBoard's HPARAMS tab says of a run: its options, beside the last value of its scalars.

TensorBoard is told of no columns. It then shows first the options in which the runs differ, with a
filter for each, and all scalars, those of `epoch/` first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from darts_bio.config import RunConfig
from darts_bio.invocation import portable


def options_of(config: RunConfig) -> dict[str, str | float | bool]:
    """Return the options that a run is bound to, and its `kind`, as TensorBoard can hold them.

    Options that are None are left out, and `log_every`, on which no result depends. Of paths only
    the last name is given.

    >>> from darts_bio.config import SearchConfig
    >>> options = options_of(SearchConfig(rules=("fa", "usf"), seed=3))
    >>> options["kind"], options["rules"], options["seed"], "train_images" in options
    ('search', 'fa, usf', 3, False)
    """
    options: dict[str, str | float | bool] = {"kind": config.command}
    for name, value in config.identity().items():
        if name == "log_every":
            continue
        if isinstance(value, (bool, int, float)):
            options[name] = value
        elif value is not None:
            words = value if isinstance(value, list) else [value]
            options[name] = ", ".join(portable(str(word)) for word in words)
    return options


def summaries(options: Mapping[str, str | float | bool]) -> Iterator[Any]:
    """Yield the two summaries by which the HPARAMS tab knows a run that came to its end."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo()
    for name, value in options.items():
        field = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], field, value)
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    for tag, content in (
        (metadata.SESSION_START_INFO_TAG, {"session_start_info": start}),
        (metadata.SESSION_END_INFO_TAG, {"session_end_info": end}),
    ):
        data = plugin_data_pb2.HParamsPluginData(**content)
        about = metadata.create_summary_metadata(data)
        yield Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
