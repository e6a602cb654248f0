import choices
import features
import models
import transport
from transport import ComboStocType


def test_every_name_stands_for_something():
    assert (*models.ComboStoc_models, *models.SiT_models) == choices.MODELS
    assert tuple(ComboStocType.__members__) == choices.COMBOSTOC_TYPES
    for name in "PATHS PREDICTIONS WEIGHTS BLENDS".split():
        assert getattr(choices, name) == tuple(getattr(transport, name))
    for name in "ADAPTIVE_METHODS ODE_METHODS SDE_METHODS DIFFUSION_FORMS LAST_STEPS SCHEDULES".split():
        assert getattr(choices, name) == tuple(getattr(transport, name))
    assert choices.EXTRACTORS == features.EXTRACTORS
