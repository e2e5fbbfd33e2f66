"""User weights of the loss (TransAct, eq. 1): a product over attributes, as the domain file states them.

Shapes: U versions of users.
"""

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.features.attributes import UNKNOWN_CATEGORY
from rayapp.model.inputs import FeatureTables


def user_weights(domain: Domain, inputs: FeatureTables) -> NDArray[np.float32]:
    """`[U + 1]`, a weight for each row of the user table: 1 for a user whose attributes the domain does not weigh."""
    encoder = inputs.encoders.user
    weight_of_category = np.ones(encoder.num_categories, np.float32)
    first = UNKNOWN_CATEGORY + 1
    for attribute, known in encoder.categories.items():
        for place, name in enumerate(known):
            weight_of_category[first + place] = domain.user_weights.get(attribute, {}).get(name, 1.0)
        first += len(known)
    weight_U: NDArray[np.float32] = weight_of_category[inputs.users.category_UW].prod(axis=1)
    return weight_U
