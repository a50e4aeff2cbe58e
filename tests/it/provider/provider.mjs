// An OpenID provider on loopback for one test: `node provider.mjs FOLDER PORT`. FOLDER has node_modules. It has new
// keys at each start, and accepts every password; a user's name there is `sub`, and the address in the entry.

import { generateKeyPairSync, randomUUID } from 'node:crypto';

const [folder, port] = process.argv.slice(2);
const { default: Provider } = await import(`${folder}/node_modules/oidc-provider/lib/index.js`);

const key = (alg, type, options) => {
  const jwk = generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' });
  return { ...jwk, alg, use: 'sig', kid: `${alg}-${randomUUID()}` };
};

// What a token is for: the audience, and its form.
const jwt = (audience, alg) => ({ scope: 'mail', audience, accessTokenFormat: 'jwt', jwt: { sign: { alg } } });
const resources = {
  'urn:example:mail': jwt('mail', 'ES256'),
  'urn:example:mail-rsa': jwt('mail', 'RS256'),
  'urn:example:mail-opaque': { scope: 'mail', audience: 'mail', accessTokenFormat: 'opaque' },
  'urn:example:calendar': jwt('calendar', 'ES256'),
};

const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: { keys: [key('ES256', 'ec', { namedCurve: 'P-256' }), key('RS256', 'rsa', { modulusLength: 2048 })] },
  cookies: { keys: [randomUUID()] },
  clients: [
    {
      client_id: 'mail-client',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      redirect_uris: ['http://localhost/'],
      grant_types: ['authorization_code', 'refresh_token'],
    },
    { client_id: 'robot', client_secret: 'robot-secret', redirect_uris: [], response_types: [], grant_types: ['client_credentials'] },
    { client_id: 'usher', client_secret: 'usher-secret', redirect_uris: [], response_types: [], grant_types: [] },
  ],
  scopes: ['openid', 'offline_access', 'mail'],
  findAccount: (_, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  extraTokenClaims: (_, token) => (token.accountId ? { entry: token.accountId } : undefined),
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: { enabled: true, getResourceServerInfo: (_, resource) => resources[resource] },
  },
});
provider.listen(Number(port), '127.0.0.1');
