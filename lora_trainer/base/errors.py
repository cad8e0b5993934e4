"""Errors that speak to the user: what was found, what was expected, what to do."""

import enum
from collections.abc import Mapping
from typing import Any


class ErrorCode(str, enum.Enum):
    """What kind of refusal it is, for programs: the value is what the API sends as `code`, `status`
    the HTTP status that goes with it.
    """

    status: int

    def __new__(cls, value: str, status: int = 422) -> "ErrorCode":
        member = str.__new__(cls, value)
        member._value_ = value
        member.status = status
        return member

    def __str__(self) -> str:
        return self.value

    ARCHIVE_LIMIT = "archive_limit"
    BAD_ARCHIVE = "bad_archive"
    BAD_CONCEPTS = "bad_concepts"
    BAD_LABELS = "bad_labels"
    BAD_LORA = "bad_lora"
    BAD_MASK = "bad_mask"
    BAD_NAME = "bad_name"
    BAD_OPTIMIZER = "bad_optimizer"
    BAD_PRECISION = "bad_precision"
    BAD_RATES = "bad_rates"
    BAD_REQUEST = "bad_request"
    BAD_VALUE = "bad_value"
    BUSY = "busy", 409
    CANNOT_RESUME = "cannot_resume", 409
    CANNOT_SAVE = "cannot_save", 507
    CHANGED_MEANWHILE = "changed_meanwhile", 409
    CONTRADICTION = "contradiction"
    DAMAGED = "damaged"
    DISK_FULL = "disk_full", 507
    ENCRYPTED = "encrypted"
    EXISTS = "exists", 409
    FAILED = "failed"
    FORBIDDEN_PATH = "forbidden_path", 403
    HTTP_ERROR = "http_error"
    INTERNAL = "internal", 500
    MEDVRAM = "medvram"
    MISSING_PACKAGE = "missing_package"
    NAME_TAKEN = "name_taken", 409
    NO_DOWNLOAD = "no_download", 409
    NO_FILE = "no_file"
    NO_FOLDER = "no_folder"
    NO_LORA = "no_lora"
    NO_MODEL = "no_model"
    NO_NAME = "no_name"
    NO_PACKAGE = "no_package"
    NO_PERMISSION = "no_permission"
    NO_PICTURES = "no_pictures"
    NO_SETTINGS = "no_settings"
    NOT_A_FILE = "not_a_file"
    NOT_A_PICTURE = "not_a_picture"
    NOT_ALLOWED = "not_allowed", 403
    NOT_FINITE = "not_finite"
    NOT_FOUND = "not_found", 404
    NOT_POSSIBLE = "not_possible"
    NOT_READY = "not_ready", 409
    NOT_RUNNING = "not_running", 409
    NOT_SAFE = "not_safe"
    NOT_TRAINABLE = "not_trainable", 409
    NOTHING_TO_REDO = "nothing_to_redo", 409
    NOTHING_TO_RESTORE = "nothing_to_restore", 409
    NOTHING_TO_UNDO = "nothing_to_undo", 409
    OUT_OF_MEMORY = "out_of_memory"
    REFUSED = "refused"
    REGULARISATION = "regularisation"
    SHARED = "shared"
    SPOILED = "spoiled"
    TOO_LARGE = "too_large", 413
    TOO_NARROW = "too_narrow"
    TOO_SMALL = "too_small"
    TWICE = "twice"
    UNKNOWN_SETTING = "unknown_setting"
    UNREADABLE_CAPTION = "unreadable_caption"
    UNREADABLE_CONFIG = "unreadable_config"
    UNREADABLE_TABLE = "unreadable_table"
    VAE_NOT_FINITE = "vae_not_finite"
    WRONG_CONTENT_TYPE = "wrong_content_type", 415
    WRONG_METHOD = "wrong_method", 405
    WRONG_MODEL = "wrong_model"


class Refused(Exception):
    """Something that cannot be done, said in one sentence. `field` names the setting to mend;
    `code` and `details` are for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        code: str = ErrorCode.REFUSED,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.code = ErrorCode(code)
        self.details = details or {}


class Stopped(Exception):
    """The user asked a run to stop."""


class NotFinite(Exception):
    """A step gave a number that is not finite. `step` counts from 1, `pictures` are the numbers of
    those in its batches.
    """

    def __init__(self, step: int, what: str, value: float, pictures: list[int]) -> None:
        super().__init__(f"The {what} became {value} at step {step}.")
        self.step, self.what, self.value, self.pictures = step, what, value, pictures


class OutOfMemory(Exception):
    """A step, or the encoding before the first (step 0), did not fit into memory; `amount` says how
    much was needed and was there.
    """

    def __init__(self, step: int, amount: str) -> None:
        super().__init__(
            f"Memory ran out {f'at step {step}' if step else 'while encoding the pictures'}"
            f" ({amount})."
        )
        self.step, self.amount = step, amount
