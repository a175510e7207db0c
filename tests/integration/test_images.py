"""Images by path, from the submitter's disk to the API."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

from tests.integration.conftest import MakeSite
from tests.pictures import JPEG, PNG, asking_about
from worker.jobs.states import State


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_images_named_by_their_paths_arrive_as_data_urls(
    make_site: MakeSite, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b").write_bytes(JPEG)
    site = make_site(kind)
    site.start_worker()
    names = [("a.png",), ("b", "a.png"), ("a.png", "https://example.com/c.png")]
    batch = site.client.submit_many(
        [asking_about(*some, text=f"Grüße {n}") for n, some in enumerate(names)], images=tmp_path
    )
    single = site.client.submit(asking_about("b", text="alone"), images=tmp_path)
    # what was sent does not depend on the files any more
    (tmp_path / "a.png").unlink()
    (tmp_path / "b").unlink()
    assert site.finished(batch).succeeded == 3
    assert site.client.wait(single.id, 60).state is State.SUCCEEDED
    sent = {
        "a.png": f"data:image/png;base64,{b64encode(PNG).decode()}",
        "b": f"data:image/jpeg;base64,{b64encode(JPEG).decode()}",
    }
    bodies = [
        asking_about(*(sent.get(one, one) for one in some), text=f"Grüße {n}")
        for n, some in enumerate(names)
    ]
    for body in (*bodies, asking_about(sent["b"], text="alone")):
        assert site.calls_of(json.dumps(body, ensure_ascii=False)) == 1
    site.close()
