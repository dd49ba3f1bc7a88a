"""The events of a run on the Prefect server."""

import time

from prefect.events.filters import EventFilter, EventNameFilter


def events_named(client, name, run_id):
    """The events of a name about a run; they arrive a moment after they were sent."""
    for _ in range(100):
        page = client._client.post(
            "/events/filter",
            json={
                "filter": EventFilter(event=EventNameFilter(name=[name])).model_dump(mode="json")
            },
        ).json()["events"]
        if found := [each for each in page if each["payload"].get("run_id") == run_id]:
            return found
        time.sleep(0.1)
    return []
