"""One call as a flow of steps: what is sent, when it is repeated, what an answer means, and who performs the steps."""
