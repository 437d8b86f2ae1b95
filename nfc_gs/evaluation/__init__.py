"""A model held against photographs it has not seen: metrics and pictures."""

from nfc_gs.evaluation.lpips import Lpips
from nfc_gs.evaluation.metrics import Evaluation, evaluate, metrics, write_metrics
from nfc_gs.evaluation.pictures import contact_sheet, render_split

__all__ = ["Evaluation", "Lpips", "contact_sheet", "evaluate", "metrics", "render_split", "write_metrics"]
