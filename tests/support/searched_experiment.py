"""An experiment with a small search space, and recipes of that space."""

import tomllib

from acuity.study.config.loading import parse
from acuity.study.search.recipes import Recipe

EXPONENTS = (4, 10)
EXPERIMENT = parse(
    tomllib.loads(
        """
        name = "nih"
        labels = ["Effusion", "Mass", "Nodule"]
        data = { index = "a.csv", images = "images" }
        training = { epochs = 10 }
        [search]
        resolutions = [64, 128, 32]
        architectures = ["test_resnet", "test_efficientnet"]
        trials = 24
        """
    ),
    source="here",
)
GOOD, FAIR, POOR = (Recipe("test_resnet", rate, 5) for rate in (1e-3, 2e-3, 3e-3))
