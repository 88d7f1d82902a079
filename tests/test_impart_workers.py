"""Work in several threads, and its results in the order of the items."""

import threading

import pytest

from impart.workers import in_order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers):
    first_waits = threading.Event()

    def work(item):
        if workers > 1 and item == 0:
            assert first_waits.wait(20)  # until a later one has run
        if item == 1:
            first_waits.set()
        return item * item

    assert list(in_order(work, range(20), workers)) == [item * item for item in range(20)]
    assert list(in_order(work, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_items_are_taken_as_their_turn_comes(workers):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items(), workers)
    assert next(results) == 0
    assert len(taken) <= workers + 1
    results.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_ends_it(workers):
    def work(item):
        if item == 4:
            raise ValueError("four")
        return item

    found = []
    with pytest.raises(ValueError, match="four"):
        for result in in_order(work, range(100), workers):
            found.append(result)
    assert found == [0, 1, 2, 3]
