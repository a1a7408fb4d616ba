"""What a user may see instead of a traceback: each message is one sentence with the thing, the place, the way out."""

# Added to the exit code of one of several processes that said a sentence: starting it again would say it again.
MISTAKE = 64


class ClipError(Exception):
    """Base of every error that is the user's to mend: printed as one sentence; the command exits with `exit_code`."""

    exit_code = 1


class UsageError(ClipError):
    """A flag or a configuration value that cannot be used."""

    exit_code = 2


class MissingExtraError(ClipError):
    """A command that needs an optional part of the installation."""

    exit_code = 2


class DataError(ClipError):
    """A pair list or a folder that cannot be read as image-text pairs."""


class ImageError(DataError):
    """One image that cannot be decoded, or must not be."""


class TokenizerError(ClipError):
    """A tokenizer.json that is missing, unreadable or does not fit the model."""


class ShapeError(ClipError, ValueError):
    """Arrays whose shapes do not fit each other."""


class RunError(ClipError):
    """A run directory that is missing, in use, or not what it should be."""


class RunBusyError(RunError):
    """Another trainer is writing to the run directory."""

    exit_code = 3


class CheckpointError(ClipError):
    """A checkpoint that does not exist, is damaged, or belongs to another model."""


class TrainingError(ClipError):
    """Training that cannot go on: a non-finite loss or gradient."""

    exit_code = 4


class NonFiniteError(TrainingError):
    """A loss or gradient that is not finite.  args: (what and where, how to go on); `step`: the batch, from 0."""

    def __init__(self, found: str, way_out: str, step: int) -> None:
        super().__init__(f"{found}; {way_out}")
        self.found, self.step = found, step


class OutOfMemoryError(TrainingError):
    """Memory ran out in one of several processes, in the middle of a step."""


class BackendError(ClipError):
    """An inference backend or execution provider that cannot be used here."""


class BundleError(ClipError):
    """An ONNX bundle that is damaged, incomplete or asks for something a bundle may not."""


class ParityError(ClipError):
    """An exported model that does not say the same as the model it came from."""

    exit_code = 5
