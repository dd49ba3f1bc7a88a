"""Read the events of a run from the Prefect server."""

import time

from prefect.events.filters import EventFilter, EventNameFilter


def events_named(client, name, run_id, *, tries=100):
    """Return the events with a name about a run; they arrive shortly after they are sent."""
    for _ in range(tries):
        page = client._client.post(
            "/events/filter",
            json={
                "filter": EventFilter(event=EventNameFilter(name=[name])).model_dump(mode="json")
            },
        ).json()["events"]
        if events := [each for each in page if each["payload"].get("run_id") == run_id]:
            return events
        time.sleep(0.1)
    return []
