"""Names of the index formats in the experiment file. Imports nothing, so that the file is read quickly."""

from typing import Literal

FormatName = Literal["nih", "chexpert", "padchest", "table"]
