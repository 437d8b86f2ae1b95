from collections import Counter
from dataclasses import replace

from nfc_gs.core.scene import Photograph
from nfc_gs.training.callbacks.base import Session
from nfc_gs.training.callbacks.tensorboard import EVIDENCE_VIEWS, Writer
from tests.evaluation import moving
from tests.training.test_clock import only


def test_the_photographs_that_confidence_is_asked_of_are_decoded_once(tmp_path):
    scene, decoded = moving.scene(), Counter()

    def counted(name, read):
        def photograph() -> Photograph:
            decoded[name] += 1
            return read()

        return photograph

    views = tuple(replace(view, read=counted(view.name, view.read)) for view in scene.train)
    known = {"scene": replace(scene, train=views), "model": moving.model}
    session = only(Session, folder=tmp_path, settings="", first_step=0, **known)
    writer = Writer(session, every=1, histograms=1)
    for step in (1, 2, 3):
        writer._confidence(step)
    writer.close("stopped")
    assert len(decoded) == min(EVIDENCE_VIEWS, len(views)) and set(decoded.values()) == {1}
