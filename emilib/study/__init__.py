"""Study: training, experiments, metrics and tables."""

from emilib.metrics import mean_pearson as mean_pearson
from emilib.metrics import pearson as pearson
from emilib.study.runs import ExperimentError as ExperimentError
from emilib.study.runs import run as run
from emilib.study.savchenko import fit_savchenko as fit_savchenko
from emilib.training.loop import Result as Result
from emilib.training.loop import fit as fit
from emilib.training.loop import predict as predict
from emilib.training.recipes import Recipe as Recipe
