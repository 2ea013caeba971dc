from slmc.api import Engine as Engine
from slmc.api import Evaluation as Evaluation
from slmc.api import Recommendation as Recommendation
from slmc.api import Recommendations as Recommendations
from slmc.api import Recommender as Recommender
from slmc.api import Run as Run
from slmc.api import evaluate as evaluate
from slmc.api import load as load
from slmc.api import run as run

__version__: str
