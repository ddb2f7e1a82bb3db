# what the planning heads tell on held-out music: heads.py WORK STEPS
import sys, numpy as np, jax, jax.numpy as jnp, json
from musae_jax import load_musicgen
from musae_jax.pocket.lm import *
from musae_jax.pocket.lm import losses
from musae_jax.pocket.planning import *
from musae_jax.pocket.planning import LOUDNESS
from musae_jax.pocket.corpus import *
from musae_jax.compose.concepts import VOCABULARY
from musae_jax.checkpoint import TrainingCheckpoints
work=sys.argv[1]
mg=load_musicgen('pocket'); config=mg.config
tr=LanguageModelTraining(steps=int(sys.argv[2]),learning_rate=2e-3,text_learning_rate=2e-3/3)
state=init_state(config,tr,mg.params)
done,state=TrainingCheckpoints(work+'/lm/checkpoints').restore(state); print(done)
params=state['params']
truth=np.load(work+'/bank-901-64-10-16000.truth.npy'); codes=np.load(work+'/codes-held.npy').astype(np.int32)
st=styles(901,64,10.0); sc=scores(np.load(work+'/bank-901-64-10-16000.roll.npy'),truth,st)
ids,mask=corpus_tokens(mg.tokenizer,901,st,config.text.pad_token_id)
fam={}
for i,c in enumerate(VOCABULARY): fam.setdefault(c.family,[]).append(i)
k=params['plan']['concepts']['kernel']; k=k/jnp.linalg.norm(k,axis=0)*LOUDNESS; b=params['plan']['concepts']['bias']
@jax.jit
def run(p,c,i,m):
    nats,res=losses(config,p,c,i,m,None,(2,)); s=res[2]; s=s*jax.lax.rsqrt(jnp.mean(s**2,-1,keepdims=True)+1e-6)
    return nats, s[:,1:]@k+b, s[:,:-1]@p['plan']['beat']['kernel']+p['plan']['beat']['bias']
beat=plan(sc,np.arange(64),500).beat
for text in (False,True):
    L,B,N=[],[],[]
    for r in range(0,64,8):
        m=mask[r:r+8,3]*int(text)
        n,l,bb=run(params,codes[r:r+8],ids[r:r+8,3],m); L.append(np.asarray(l)); B.append(np.asarray(bb).argmax(-1)); N.append(np.asarray(n))
    L=np.concatenate(L)[:,250:]; B=np.concatenate(B)[:,250:]; T=truth[:,250:]
    out={}
    for f,idx in fam.items():
        t=T[...,idx]; ok=t.sum(-1)==1
        if ok.mean()<.2: 
            out[f]=('bin',round(float(((L[...,idx]>0)==t).mean()),3)); continue
        out[f]=(round(float((L[...,idx].argmax(-1)==t.argmax(-1))[ok].mean()),3), round(float(max(t[ok].mean(0))),2))
    out['beat']=round(float((B==beat[:,250:]).mean()),3)
    print('text' if text else 'no text',np.round(np.mean(N,0),3).tolist(),json.dumps(out))
