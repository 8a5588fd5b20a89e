"""Mistakes a user can put right: one class per kind of remedy, one clear line per message.

UserError              base; the command line prints its message and exits with code 2
  ConfigError          edit the configuration
  DataError            correct or replace the named image, mask or label file
  WeightsError         give other weights, or other model settings
  StageNotReady        run the named command first
  DamagedFile          a stored result cannot be read: make it again with --force
  LibraryMissing       install the named library, or do without that part
  CannotWrite          make room on the disk, or get the permission to write
  OutOfMemory          lower the named batch size
  WorkerLost           the system killed a worker process: use fewer of them
  RunFolderBusy        another process works in this run folder
  TrainingDiverged     the loss is not finite: lower the learning rate
  PeerLost             another process of the run is gone: start the same command again
Interrupted            not a mistake: work was saved after Ctrl-C or another signal; exit code 130
SaidByAnother          not a mistake: another process of the run has said why it ends
"""


class UserError(Exception):
    """Something the user can put right. The message is one line: what, where, what to do."""


class ConfigError(UserError):
    """A key or value of the configuration is wrong."""


class DataError(UserError):
    """An image, mask or label file is missing, unreadable or contradicts another."""


class WeightsError(UserError):
    """Stored weights do not fit the model, or cannot be found."""


class StageNotReady(UserError):
    """A stage needs a result that does not exist yet."""


class DamagedFile(UserError):
    """A stored result cannot be read or does not have the size its manifest states."""


class LibraryMissing(UserError):
    """A library that only a part of the work needs is not installed."""


class CannotWrite(UserError):
    """The disk is full, or a file or folder may not be written to."""


class OutOfMemory(UserError):
    """The GPU or the machine has too little memory."""


class WorkerLost(UserError):
    """A worker process was killed from outside, most often because the machine had too little memory."""


class RunFolderBusy(UserError):
    """Another process holds the run folder."""


class TrainingDiverged(UserError):
    """The loss became infinite or not a number."""


class PeerLost(UserError):
    """Another process of this run is gone, or was never found."""


class Interrupted(Exception):
    """A signal asked for an end (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1); what is finished has been saved."""


class SaidByAnother(Exception):
    """Another process of this run has reported why it ends; this one ends silently with the same exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("another process of this run has said why it ends")
        self.code = code


LONGEST_LINE = 2000


def one_line(text: str) -> str:
    """A message as a single line of bounded length; characters that cannot be printed are escaped."""
    line = " ".join(part.strip() for part in text.splitlines())
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return shown if len(shown) <= LONGEST_LINE else f"{shown[: LONGEST_LINE // 2]} ... {shown[-LONGEST_LINE // 2 :]}"
