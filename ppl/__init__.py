"""The console command: ``ppl run FILE.py`` runs a recipe and leaves a report, ``ppl list`` shows what there is."""

from ppl.command import run

__all__ = ["run"]
