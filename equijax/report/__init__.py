"""The report of a run: pictures, tables and a model card in one self-contained HTML file."""

from equijax.report.write import write_report as write_report
