from vcmodels.training.run_folder import changed_keys


def test_only_whole_keys_are_free_to_change():
    old = {"tr_params": {"device": "cpu", "device_x": 1, "seed": 0}, "inference_params": {"a": 1}}
    new = {"tr_params": {"device": "cuda", "device_x": 2, "seed": 0}, "inference_params": {"a": 2}}
    assert [key for key, _, _ in changed_keys(old, new)] == ["tr_params.device_x"]
