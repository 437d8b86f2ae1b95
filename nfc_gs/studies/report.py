"""A study's files: its results as JSON, and the page and plots that are made of them alone."""

from pathlib import Path

from nfc_gs.studies.charts import draw_curves, draw_gains
from nfc_gs.studies.matrix import StudyError
from nfc_gs.studies.results import Results, write_results
from nfc_gs.studies.tables import markdown


def write_report(results: Results, folder: Path) -> Path:
    """Writes NAME.json, NAME.md, NAME_gains.png and NAME_curves.png; returns the page.

    Raises:
        StudyError: the folder cannot be written to.
    """
    stem = results.name
    write_results(results, folder / f"{stem}.json")
    pictures = {f"{stem}_gains.png": draw_gains, f"{stem}_curves.png": draw_curves}
    page = folder / f"{stem}.md"
    try:
        drawn = [name for name, draw in pictures.items() if draw(results, folder / name)]
        page.write_text(markdown(results, drawn, f"nfc-gs sweep {stem}.json --tables-only"))
    except OSError as error:
        raise StudyError(f"{folder}: cannot be written to: {error.strerror or error}") from None
    return page
