"""Two recipes have the losses that were recorded earlier.

If a change is meant to change the losses, write them again, and give the reason in the commit:

    python -m pytest tests/e2e/test_golden_losses.py --write-losses
"""

import golden_losses
import pytest
from golden_losses import RECIPES, TOLERANCE

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def losses(request, tmp_path_factory, bpe_tokenizer):
    """The losses of each recipe, trained now."""
    folder = tmp_path_factory.mktemp("golden")
    found = golden_losses.run(golden_losses.save_golden_parts(folder / "parts", bpe_tokenizer), folder)
    if request.config.getoption("--write-losses"):
        golden_losses.write(found)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_step_has_the_loss_that_is_on_file(losses, recipe):
    assert losses[recipe] == pytest.approx(golden_losses.read(recipe), rel=TOLERANCE)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_learnt_is_far_above_the_tolerance(recipe):
    losses = golden_losses.read(recipe)
    assert losses[0] - losses[-1] > 100 * TOLERANCE * losses[0]
