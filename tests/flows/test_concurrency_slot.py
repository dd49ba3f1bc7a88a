"""A flow run that loses its concurrency slot, as in a pause, goes on."""

import threading
from uuid import uuid4

from prefect import flow_engine

import flows.flow_runs  # noqa: F401  (as every flow does)


def test_lost_slot_does_not_end_a_run(prefect_server):
    lease = uuid4()  # the server does not know it, as after a pause
    with flow_engine.maintain_concurrency_lease(lease, 300, raise_on_lease_renewal_failure=True):
        for thread in threading.enumerate():
            if str(lease) in thread.name:
                thread.join()
                break
        else:
            raise AssertionError("nothing renews the slot")
        assert not thread.is_alive()
