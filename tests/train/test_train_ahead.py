"""Batches made ahead are the batches asked for."""

import threading

import pytest
import torch

from danlu.train.ahead import Ahead

CPU = torch.device("cpu")


def test_any_order_gives_what_the_function_gives():
    ahead = Ahead(lambda step: [step * step], 10, CPU)
    assert [ahead(step) for step in (0, 1, 2, 7, 8, 3)] == [[0], [1], [4], [49], [64], [9]]


def test_the_next_step_is_made_while_this_one_is_learnt():
    made = threading.Event()

    def batches(step):
        if step == 1:
            made.set()
        return [step]

    Ahead(batches, 2, CPU)(0)
    assert made.wait(10)


def test_an_error_comes_when_its_step_is_asked_for():
    def batches(step):
        if step == 2:
            raise ValueError("no such row")
        return [step]

    ahead = Ahead(batches, 3, CPU)
    assert ahead(0) == [0]
    assert ahead(1) == [1]
    with pytest.raises(ValueError, match="no such row"):
        ahead(2)


def test_nothing_is_begun_behind_the_last_step():
    made = []

    def batches(step):
        made.append(step)
        return [step]

    ahead = Ahead(batches, 2, CPU)
    assert (ahead(0), ahead(1)) == ([0], [1])
    ahead._pool.shutdown()  # waits for whatever was begun
    assert made == [0, 1]


def test_the_thread_works_on_the_gpu_of_its_process(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: told.append((threading.current_thread().name, gpu)))
    threads = []
    ahead = Ahead(lambda step: threads.append(threading.current_thread().name), 2, torch.device("cuda", 1))
    ahead(0)
    ahead(1)
    assert told == [(threads[1], torch.device("cuda", 1))]
    assert threads[1] != threads[0]
