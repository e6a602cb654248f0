import torch

from experiments.timestep_maps import tiles


def test_maps_vary_as_their_types_say_and_make_x_t():
    x1, x0 = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    pictures, captions = tiles(x1, x0, 0)
    assert captions[1::6] == ["t: NONE", "t: VEC", "t: PATCH", "t: ALL"]
    values = []
    for k in range(4):
        image, shown, xt = pictures[6 * k : 6 * k + 3]
        t = (shown + 1) / 2
        torch.testing.assert_close(xt, t * image + (1 - t) * x0[0])
        values.append([t.unique().numel(), t[0].unique().numel(), t[:, 0, 0].unique().numel()])
    assert values == [[1, 1, 1], [3, 1, 3], [64, 64, 1], [192, 64, 3]]
