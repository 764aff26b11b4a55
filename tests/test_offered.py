"""What `import model_opt` offers."""

import model_opt


def test_everything_that_is_offered_is_there() -> None:
    assert set(model_opt.__all__) == set(model_opt._ON_FIRST_USE) <= set(dir(model_opt))
    for name in model_opt.__all__:
        offered = getattr(model_opt, name)
        assert offered.__name__ == name
        assert offered.__module__ == f"model_opt.{model_opt._ON_FIRST_USE[name]}"
