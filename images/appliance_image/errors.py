"""The one error that a person sees; anything else that escapes is a bug and shows its traceback.

ApplianceError
├── DigestError, NameSyntaxError, ContractError     (this package: a value that is not what it claims to be)
└── one per neighbour, beside the code that talks to it
"""


class ApplianceError(Exception):
    """`message` is one sentence in lower case; `hint` is what to do next, best a command that can be typed."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
