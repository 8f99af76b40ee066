"""The SDK for owners and users: attests, seals, opens."""
