"""Types of single values in an experiment file, each with its rule."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

RULE_ERROR = "rule"
"""The type of pydantic's error where a value breaks a `Rule`."""


@dataclass(frozen=True)
class Rule:
    """A rule in words. pydantic reports it in place of its own message for every invalid value of the type."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type=RULE_ERROR, custom_error_message=self.words
        )


Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"),
    Rule("a text of letters, digits, '.', '_' and '-' (64 at most)"),
]
_INVISIBLE = r"\u{061C}\u{200E}\u{200F}\u{2028}-\u{202E}\u{2066}-\u{2069}\u{FEFF}"
"""Characters that show a text in another order than it is stored, or break its line."""
Label = Annotated[
    str,
    Field(pattern=rf"^[^\p{{Cc}}{_INVISIBLE}]{{1,128}}$"),
    Rule("a text of 1 to 128 characters in one line, without control characters and marks of direction"),
]
_FUNCTION = r"[\p{L}_]\w*(\.[\p{L}_]\w*)*:[\p{L}_]\w*"
FunctionName = Annotated[
    str,
    Field(pattern=rf"^{_FUNCTION}$"),
    Rule('a function as "module:function", such as "mypackage.losses:focal_loss"'),
]
Architecture = Annotated[
    str,
    Field(pattern=rf"^([A-Za-z0-9][A-Za-z0-9_.-]*(\?[^\s?]*)?|{_FUNCTION})$"),
    Rule('timm\'s name of a network, "name?key=value" with arguments, or a function as "module:function"'),
]
WandbProject = Annotated[
    str,
    Field(pattern=r"^[^/\\#?%:\p{Cc}]{1,128}$"),
    Rule("a project's name of 1 to 128 characters, without / \\ # ? % :"),
]
Resolution = Annotated[int, Field(ge=16, le=2048, multiple_of=8), Rule("a multiple of 8 between 16 and 2048")]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""The database's integers have 32 bits."""
PositiveFloat = Annotated[float, Field(gt=0, le=1e6)]
Seconds = Annotated[int, Field(ge=1, le=7 * 86400), Rule("a whole number of seconds between 1 and 604800, a week")]
Minutes = Annotated[float, Field(gt=0, le=525600), Rule("a number of minutes above 0, at most 525600, a year")]
Gibibytes = Annotated[float, Field(gt=0, le=1e6), Rule("a number above 0, at most 1000000")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, le=1)]
Age = Annotated[float, Field(ge=0, le=120)]
BatchSize = Annotated[int, Field(ge=2, le=2**31 - 1)]
BatchChoice = Annotated[Literal["search", "largest"] | BatchSize, Rule('"search", "largest" or a number from 2')]
OptionValue = Annotated[str | int | bool, Rule("a text, a whole number, true or false")]
