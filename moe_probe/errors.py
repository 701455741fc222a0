"""The errors that moe_probe raises on purpose.

Every message names the thing that is wrong, with its value, and says what to do. The command line prints the message
as one line and exits with the class's `exit_status`: 1 the work failed, 2 bad arguments or bad input.
"""


class MoeProbeError(Exception):
    """The work failed; the root of all errors raised on purpose."""

    exit_status = 1


class BadInputError(MoeProbeError):
    """An argument or an input file cannot be used."""

    exit_status = 2


class UnsupportedModelError(BadInputError):
    """No router was found in a model, or its decisions cannot be read exactly."""


class ModelTooLargeError(MoeProbeError):
    """The weights do not fit into the memory at hand."""


class RoutingError(MoeProbeError):
    """What was recorded cannot be what the experts executed."""


class RunError(BadInputError):
    """A run on disk cannot be opened, resumed or trusted."""
