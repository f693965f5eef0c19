"""Names of the index formats, as the experiment file writes them. Imports nothing, so that reading the file is quick."""

from typing import Literal

FormatName = Literal["nih", "chexpert", "padchest", "table"]
