"""The Open Inference Protocol, asked by Triton's own client."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hand_engine import by_hand
from served_engine import ask, server
from tritonclient.utils import InferenceServerException

from slmc.export.runtime.engine import Engine

HISTORIES = np.array([[0, 1], [2, 3], [0, 0]])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sealed = by_hand(tmp_path_factory.mktemp("place"), top_k=3)
    with server(sealed.path) as (_, port):
        yield port, Engine(sealed.path)


@pytest.fixture
def client(served: Any) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{served[0]}")
    yield client
    client.close()


def tensor(rows: np.ndarray, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput("item_ids", list(rows.shape), "INT64")
    given.set_data_from_numpy(rows, binary_data=binary)
    return given


def test_the_server_describes_itself(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("hand")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    model = client.get_model_metadata("hand")
    assert model["inputs"] == [{"name": "item_ids", "datatype": "INT64", "shape": [-1, -1]}]
    assert [one["shape"] for one in model["outputs"]] == [[-1, 3], [-1, 3]]


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_are_those_of_the_engine(
    served: Any, client: triton.InferenceServerClient, binary: bool
) -> None:
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("top_items", "top_scores")
    ]
    answer = client.infer("hand", [tensor(HISTORIES, binary)], outputs=outputs, request_id="7")
    items, scores = served[1].answer(HISTORIES)
    assert answer.get_response()["id"] == "7"
    np.testing.assert_array_equal(answer.as_numpy("top_items"), items)
    np.testing.assert_array_equal(answer.as_numpy("top_scores"), scores)


def test_all_outputs_come_without_being_asked_for(client: triton.InferenceServerClient) -> None:
    answer = client.infer("hand", [tensor(HISTORIES)])
    assert answer.as_numpy("top_items").shape == answer.as_numpy("top_scores").shape == (3, 3)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (np.array([[5]]), "inputs[0]: rows must be in 1..4, and 0 before the history"),
        (
            np.zeros((1, 0), np.int64),
            "inputs[0].shape: expected [B, L], B at most 1024, not [1, 0]",
        ),
    ],
)
def test_wrong_tensors_are_refused(
    client: triton.InferenceServerClient, rows: np.ndarray, error: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("hand", [tensor(rows)])
    assert raised.value.message() == error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("{}", "inputs: missing"),
        ('{"inputs": []}', "inputs: expected one tensor, item_ids"),
        (
            '{"inputs": [{"name": "item_ids", "shape": [1, 2], "datatype": "INT64", "data": [1]}]}',
            "inputs[0].data: expected whole numbers that fit the shape [1, 2]",
        ),
    ],
)
def test_wrong_json_is_refused(served: Any, body: str, error: str) -> None:
    status, content = ask(served[0], "/v2/models/hand/infer", body)
    assert (status, content.decode()) == (400, f'{{"error":"{error}"}}')


def test_an_unknown_engine(client: triton.InferenceServerClient) -> None:
    assert not client.is_model_ready("other")
