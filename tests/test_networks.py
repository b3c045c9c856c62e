import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from awsgd_rl.agents.networks import Body, ObservationNormaliser, ValueFunction
from awsgd_rl.agents.policy_networks import make_policy
from awsgd_rl.agents.spaces import check_spaces

BOX = gym.spaces.Box(-1.0, 1.0, (3,))
STATES = gym.spaces.Discrete(5)
ACTIONS = gym.spaces.Discrete(4)
TORQUES = gym.spaces.Box(-2.0, 2.0, (2,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def policy_on(observation_space, action_space, kind="mlp", seed=0, spread=0.5):
    policy = make_policy(observation_space, action_space, kind, (8, 8), -0.5, generator(seed))
    noise = generator(seed + 1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=noise))
    return policy


def observations_of(space, n=6):
    if isinstance(space, gym.spaces.Discrete):
        return torch.arange(n) % int(space.n)
    return torch.randn(n, *space.shape, generator=generator(3))


CASES = [
    (BOX, ACTIONS, "mlp"),
    (BOX, TORQUES, "mlp"),
    (STATES, ACTIONS, "mlp"),
    (STATES, ACTIONS, "table"),
    (STATES, TORQUES, "table"),
]


@pytest.mark.parametrize(("observation_space", "action_space", "kind"), CASES)
def test_quantities_agree_with_torch_distributions(observation_space, action_space, kind):
    policy = policy_on(observation_space, action_space, kind)
    other = policy_on(observation_space, action_space, kind, seed=7)
    observations = observations_of(observation_space)
    outputs, other_outputs = policy(observations), other(observations)

    def distribution(outputs):
        if isinstance(action_space, gym.spaces.Discrete):
            return Categorical(logits=outputs)
        mean, log_std = outputs.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp()), 1)

    expected = distribution(outputs)
    actions = policy.draw(outputs, generator())
    torch.testing.assert_close(policy.log_prob(outputs, actions), expected.log_prob(actions))
    torch.testing.assert_close(policy.entropy(outputs), expected.entropy())
    torch.testing.assert_close(
        policy.kl(other_outputs, outputs), kl_divergence(distribution(other_outputs), expected)
    )
    torch.testing.assert_close(
        policy.proposal.log_prob(actions, given=observations), expected.log_prob(actions)
    )
    assert outputs.dtype == torch.float64


@pytest.mark.parametrize(("observation_space", "action_space", "kind"), CASES)
def test_head_gradients_are_those_of_autograd(observation_space, action_space, kind):
    policy = policy_on(observation_space, action_space, kind)
    observations = observations_of(observation_space, 12)
    outputs = policy(observations)
    actions = policy.draw(outputs, generator())
    coefficients = torch.randn(12, dtype=torch.float64, generator=generator(9))
    scores = policy.output_score(outputs, actions) * coefficients.unsqueeze(-1)
    shape = (4, 3)
    found = policy.body.head_gradients(
        observations.view(*shape, *observations.shape[1:]), scores.view(*shape, -1)
    )
    log_prob = (policy.log_prob(outputs, actions) * coefficients).view(shape)
    for b in range(3):
        grads = torch.autograd.grad(
            log_prob[:, b].sum(), list(policy.body.head.parameters()), retain_graph=True
        )
        expected = grads[0] if len(grads) == 1 else torch.cat((grads[0], grads[1][:, None]), 1)
        torch.testing.assert_close(found[b].float(), expected, rtol=1e-4, atol=1e-5)


def test_draws_have_the_stated_probabilities():
    policy = policy_on(STATES, ACTIONS, "table", spread=1.0)
    n = 20_000
    outputs = policy(torch.full((n,), 2))
    actions = policy.draw(outputs, generator())
    probabilities = outputs[0].exp().detach()
    frequencies = torch.bincount(actions, minlength=4) / n
    error = (probabilities * (1 - probabilities) / n).sqrt()
    assert ((frequencies - probabilities).abs() < 5 * error).all()


def test_gaussian_draws_have_the_stated_moments():
    policy = policy_on(BOX, TORQUES)
    n = 20_000
    outputs = policy(torch.ones(n, 3))
    actions = policy.draw(outputs, generator()).detach()
    mean, log_std = outputs[0].detach().chunk(2)
    assert ((actions.mean(0) - mean).abs() < 5 * log_std.exp() / n**0.5).all()
    square = (actions - mean).square()
    error = square.std(0) / n**0.5
    assert ((square.mean(0) - (2 * log_std).exp()).abs() < 5 * error).all()


def test_the_mode_is_the_most_probable_action():
    policy = policy_on(BOX, ACTIONS)
    outputs = policy(observations_of(BOX))
    assert (policy.mode(outputs) == outputs.argmax(-1)).all()
    gaussian = policy_on(BOX, TORQUES)
    outputs = gaussian(observations_of(BOX))
    best = gaussian.log_prob(outputs, gaussian.mode(outputs))
    for _ in range(5):
        assert (gaussian.log_prob(outputs, gaussian.draw(outputs, generator())) <= best).all()


def test_a_table_starts_uniform_and_a_network_nearly_so():
    table = make_policy(STATES, ACTIONS, "table", (8,), 0.0, generator())
    assert (table(torch.arange(5)).exp() == 0.25).all()
    mlp = make_policy(BOX, ACTIONS, "mlp", (8, 8), 0.0, generator())
    assert (mlp(observations_of(BOX)).exp() - 0.25).abs().max() < 0.02


def test_the_seed_decides_the_weights_and_global_randomness_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, third = (
        make_policy(space, ACTIONS, "mlp", (8,), 0.0, generator(seed)).state_dict()
        for space, seed in ((BOX, 0), (BOX, 0), (BOX, 1))
    )
    make_policy(STATES, TORQUES, "mlp", (8,), 0.0, generator())
    assert (torch.get_rng_state() == before).all()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("kind", ["mlp", "table"])
def test_rescaling_changes_units_but_no_value(kind):
    values = ValueFunction(Body(STATES, 1, kind, (8,), 1.0, generator()))
    states = torch.arange(5)
    values.rescale(torch.tensor([100.0, 300.0]))
    assert values.mean == 200.0
    assert values.scale == 100.0
    before = values(states).detach()
    values.rescale(torch.tensor([-5.0, 5.0]))
    assert values.mean == pytest.approx(180 - 0.5 + 0.5)
    assert values.scale == pytest.approx(0.9 * 100 + 0.1 * 5)
    torch.testing.assert_close(values(states), before)
    scale = values.scale.clone()
    values.rescale(torch.full((3,), 7.0))
    assert torch.equal(values.scale, scale)
    torch.testing.assert_close(values(states), before)


def test_normaliser_matches_numpy_and_moves_only_when_told():
    rng = np.random.default_rng(0)
    batches = [1e4 + rng.normal(size=(n, 3)) * [1.0, 5.0, 0.0] for n in (7, 1, 40)]
    normaliser = ObservationNormaliser((3,))
    raw = torch.tensor(batches[0], dtype=torch.float32)
    for batch in batches:
        normaliser.observe(torch.tensor(batch))
    assert torch.equal(normaliser(raw), raw.clamp(-10, 10))
    normaliser.refresh()
    everything = np.concatenate(batches)
    np.testing.assert_allclose(normaliser.mean, everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normaliser.scale[:2], everything.std(0)[:2], rtol=1e-5)
    assert normaliser.scale[2] == 1.0


@pytest.mark.parametrize(
    ("observation_space", "action_space", "named"),
    [
        (gym.spaces.MultiDiscrete([2, 3]), ACTIONS, "MultiDiscrete"),
        (gym.spaces.MultiBinary(3), ACTIONS, "MultiBinary"),
        (gym.spaces.Dict({"a": BOX}), ACTIONS, "Dict"),
        (gym.spaces.Tuple((BOX,)), ACTIONS, "Tuple"),
        (BOX, gym.spaces.MultiDiscrete([2, 3]), "MultiDiscrete"),
        (BOX, gym.spaces.MultiBinary(3), "MultiBinary"),
        (BOX, gym.spaces.Dict({"a": BOX}), "Dict"),
        (BOX, gym.spaces.Box(0, 9, (2,), np.int64), "int64"),
    ],
)
def test_unsupported_spaces_are_named_with_what_is_supported(
    observation_space, action_space, named
):
    with pytest.raises(ValueError, match=f"(?s)unsupported.*{named}.*Box"):
        check_spaces(observation_space, action_space)


def test_a_table_needs_discrete_observations():
    with pytest.raises(ValueError, match="MlpPolicy"):
        make_policy(BOX, ACTIONS, "table", (8,), 0.0, generator())
