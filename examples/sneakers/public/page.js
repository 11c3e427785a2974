// The page to vote and ask. Texts of users are written as text, never as HTML.

const WORDS = ['too small', 'a bit small', 'true to size', 'a bit large', 'too large'];

const [pairForm, voteForm] = [document.querySelector('#pair'), document.querySelector('#vote')];

const counted = (votes) => `${votes} ${votes === 1 ? 'vote' : 'votes'}`;

function show(id, text, isError = false) {
  const element = document.querySelector(id);
  element.textContent = text;
  element.classList.toggle('error', isError);
}

async function call(path, body) {
  const options = body && { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

function pair() {
  const { maker, brand, year } = Object.fromEntries(new FormData(pairForm));
  return { maker, brand, year: Number(year) };
}

async function ask() {
  const { trueSize, votes, source } = await call('/true/single', pair());
  const from = source === 'votes' ? counted(votes) : 'estimated, no votes yet';
  show('#answer', `${trueSize.toFixed(2)}: ${WORDS[Math.round(trueSize) - 1]} (${from})`);
}

async function vote() {
  const { user, size, fit } = Object.fromEntries(new FormData(voteForm));
  const body = { user, ...pair(), fit: Number(fit), ...(size && { size: Number(size) }) };
  await call(size ? '/true/addsize' : '/true/add', body);
  show('#voted', 'Thank you, your vote counts.');
  await ask();
  await score();
}

async function score() {
  const { votes, model } = await call('/true/score');
  const error = model?.mean_absolute_error;
  show('#score', `${counted(votes)}${error == null ? '' : `; estimates are off by ${error.toFixed(2)} on average`}`);
}

function submit(form, id, action) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    action().catch((error) => show(id, error.message, true));
  });
}

submit(pairForm, '#answer', ask);
submit(voteForm, '#voted', async () => {
  if (pairForm.reportValidity()) await vote();
});
score().catch((error) => show('#score', error.message, true));
