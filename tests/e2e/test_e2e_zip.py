"""A zip with everything that authors put beside a DAG: helper modules, a package, an SQL template, a YAML file."""

from __future__ import annotations

from tests.live import Live
from vocabulary import zipwriter

DAG = """
import importlib.resources
from pathlib import Path

import yaml
from airflow.sdk import DAG, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

import prices
from lib import tax

HERE = Path(__file__).parent

with DAG("marketing", schedule=None, template_searchpath=[str(HERE / "sql")], params={"table": "sales"}) as dag:

    @task
    def totals():
        settings = yaml.safe_load((HERE / "config.yaml").read_text())
        beside = open(HERE / "sql" / "report.sql").read()
        resource = importlib.resources.files("lib").joinpath("notes.txt").read_text()
        assert "{{ params.table }}" in beside and resource == "from the package\\n"
        return tax.add(prices.NET) * settings["factor"]

    @task
    def unlisted():
        import not_in_the_zip

    @task
    def planted():
        import sys
        (Path("/tmp") / "planted_module.py").write_text("print('PLANTED CODE RAN')")
        try:
            HERE.chmod(0o700)
            (HERE / "planted_module.py").write_text("print('PLANTED CODE RAN')")
        finally:
            import planted_module

    class Report(SQLExecuteQueryOperator):
        def execute(self, context):
            print("RENDERED", self.sql)
            return self.sql

    Report(task_id="report", conn_id="reporting", sql="report.sql")
    totals() >> [unlisted(), planted()]
"""

FILES = {
    "marketing.py": DAG.encode(),
    "prices.py": b"NET = 100\n",
    "lib/__init__.py": b"",
    "lib/tax.py": b"def add(net):\n    return net + 19\n",
    "lib/notes.txt": b"from the package\n",
    "config.yaml": b"factor: 2\n",
    "sql/report.sql": b"select * from {{ params.table }}\n",
}


def test_a_zip_with_all_its_files_runs(live: Live) -> None:
    pushed = live.push("marketing.zip", zipwriter.pack(FILES))
    assert pushed.status in (200, 201), pushed.body
    members = live.http("GET", "/v1/archives/marketing.zip/releases/1/manifest")
    assert members.status == 200

    done = live.launch("marketing", "totals", "all-files")
    assert done["state"] == "success", live.log(done["id"])
    assert "Returned value was: 238" in live.log(done["id"])


def test_an_sql_template_of_the_zip_is_rendered(live: Live) -> None:
    live.push("marketing.zip", zipwriter.pack(FILES))
    refused = live.http("POST", "/v1/launches", {"dag_id": "marketing", "task_id": "report", "run_id": "no-grant"})
    assert (refused.status, "reporting" in refused.json["detail"]) == (403, True), refused.body

    assert live.http("PUT", "/v1/connections/reporting", {"value": "sqlite://"}).status in (200, 201)
    grant = {"kind": "connection", "name": "reporting", "to_kind": "principal", "to": "admin"}
    assert live.http("POST", "/v1/grants", grant).status == 201
    done = live.launch("marketing", "report", "rendered")
    assert done["state"] == "success", live.log(done["id"])
    assert "RENDERED select * from sales" in live.log(done["id"])


def test_what_the_manifest_does_not_list_cannot_be_imported(live: Live) -> None:
    live.push("marketing.zip", zipwriter.pack(FILES))
    for task in ("unlisted", "planted"):
        done = live.launch("marketing", task, f"import-{task}")
        log = live.log(done["id"])
        assert done["state"] == "failed", log
        assert "ModuleNotFoundError: No module named" in log
        assert "PLANTED CODE RAN\n" not in log.replace("print('PLANTED CODE RAN')", "")
