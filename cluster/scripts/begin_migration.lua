-- mark, "in" or "out", ms in which a node without a lease may still come back
-- -> "running": nodes are running; "half": there is part of a database; "whole": there is a database; "empty": there is none
-- The mark keeps nodes out. On the way in it is set on an empty or half database; otherwise on a whole one, for
-- a minute, since the reader may be killed.
for _, node in ipairs(redis.call('ZRANGEBYSCORE', p .. 'nodes', '-inf', now() - ARGV[3])) do
    end_node(node)
end
if redis.call('EXISTS', p .. 'nodes') == 1 then
    return 'running'
end
local mark = redis.call('GET', p .. 'migrating')
local found = 'empty'
if mark and string.find(mark, '^in') then
    found = 'half'
elseif redis.call('EXISTS', p .. 'users', p .. 'last-id', p .. 'pairs') > 0 then
    found = 'whole'
end
if found == 'whole' then
    redis.call('SET', p .. 'migrating', 'out ' .. ARGV[1], 'PX', 60000)
elseif ARGV[2] == 'in' then
    redis.call('SET', p .. 'migrating', 'in ' .. ARGV[1])
end
return found
